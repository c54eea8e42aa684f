"""Serving: the version that an alias of the registry names, behind HTTP, on Ray Serve.

app.py is the HTTP side and knows neither Ray nor MLflow; service.py answers with the version that follower.py holds;
replica.py and launch.py put it on Ray Serve. metrics.py is what Prometheus reads.
"""
