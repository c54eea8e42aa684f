"""The pipeline around mmrl_core: stages, search, tracking, registry and scheduled flows."""
