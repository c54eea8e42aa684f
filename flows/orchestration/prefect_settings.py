"""Imported for its effect: Prefect reads its settings when it is imported, and this module sets them.

What imports Prefect at its top imports this module before it. No other module of this folder does anything on import.
"""

from flows.orchestration.prefect_process import apply_settings

apply_settings()
