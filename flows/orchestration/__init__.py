"""Prefect flows over DVC's stages, the registry and git. Nothing else imports Prefect.

Read adapt.py first: the nightly run. dvc_graph.py asks DVC and runs its items, up_to_date.py tells without a server
whether there is anything to do, release.py is the flow that follows a new champion.
"""
