"""Words: vocabularies, prompt templates, and the encoder that turns them into a `TextBank`."""
