"""Models that somebody else runs at an OpenAI-compatible URL. Nothing of them is ever started or stopped from here."""
