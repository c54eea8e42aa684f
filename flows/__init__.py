"""The pipeline around mmrl_core: settings, stages, search, tracking, registry, serving and scheduled flows.

docs/architecture.md has a line on every room, and which may import which. Begin with cli/stages.py for what `dvc repro`
runs, with orchestration/adapt.py for the nightly flow.
"""
