"""Which tokens are edited and how: `EditPolicy`, what its fields are for, and its presets.

For others: `EditPolicy`; `OPTIONS`, what a command line, a config or a table says of each field;
`PRESETS` and `make_policy`.

Words:
    region: the probabilities at which a token is edited, on one side of the `threshold`.
    selected: in the region, so resampled. changed: selected, and the resample is another token.
    target: what carries the new tokens: inputs, labels or both.
    scope: which tokens are looked at at all.
    protected: never edited, whatever the probability: special tokens, single ids, a function's
        mask, or what the rules of `protect` find in the text.
    preset: a policy with a name.
"""

from .options import Option as Option
from .policy import OPTIONS as OPTIONS
from .policy import EditPolicy as EditPolicy
from .policy import Protect as Protect
from .policy import Redraw as Redraw
from .policy import Region as Region
from .policy import Sampler as Sampler
from .policy import Scope as Scope
from .policy import Target as Target
from .policy import make_policy as make_policy
from .presets import PRESETS as PRESETS
from .presets import Preset as Preset
from .protect import REGEX as REGEX
from .protect import RULES as RULES
from .protect import parse_rules as parse_rules
