"""Which tokens are edited, and how: `EditPolicy`, its presets and the description of its fields.

Words:
    region: the probabilities at which a token is edited, on one side of the `threshold`.
    selected: in the region, so the token is resampled. changed: the resample is another token.
    target: what carries the new tokens: inputs, labels or both.
    scope: which tokens the policy applies to.
    protected: never edited, whatever the probability: special tokens, single ids, the mask of a
        function, or what the rules of `protect` find in the text.
    preset: a policy with a name.
"""

from .options import REGEX as REGEX
from .options import RULES as RULES
from .options import Option as Option
from .options import parse_rules as parse_rules
from .policy import OPTIONS as OPTIONS
from .policy import PRESETS as PRESETS
from .policy import Context as Context
from .policy import EditPolicy as EditPolicy
from .policy import Protect as Protect
from .policy import Redraw as Redraw
from .policy import Sampler as Sampler
from .policy import Target as Target
