"""What can go wrong, as one tree: every error that a user can cause is a GemmaError.

    GemmaError
    ├── ConfigError       config.json or modules.json describes a model that we cannot run
    ├── CheckpointError   a file is missing, damaged or not what its name says
    ├── WeightsError      a tensor is missing, misshapen or holds NaN
    ├── InputError        what was passed to a call: texts, prompts, dimensions, keywords (also a ValueError)
    └── HubError          a model could not be fetched from the Hugging Face hub

    GemmaWarning          the call goes on, but perhaps not as you meant (a text was cut, a prompt stands twice)

A message says what, where, what was expected and what to do next.
"""


class GemmaError(Exception):
    """Any error that the user can mend."""


class ConfigError(GemmaError):
    """The model's description asks for something that is not served."""


class CheckpointError(GemmaError):
    """A file of the checkpoint is missing, damaged or of another kind."""


class WeightsError(GemmaError):
    """The tensors do not fit the configuration, or are not finite."""


class InputError(GemmaError, ValueError):
    """An argument is outside what the call accepts."""


class HubError(GemmaError):
    """The model could not be fetched from the hub."""


class GemmaWarning(UserWarning):
    """The call goes on, but perhaps not as you meant."""
