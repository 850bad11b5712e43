"""Settings from YAML and the command line: policy, prior and stores."""
