"""whisperd: a local speech-to-text daemon that speaks JSON lines."""

__version__ = "0.1.0"
PROTOCOL_VERSION = 1
