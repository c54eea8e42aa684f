"""Serving: the version that an alias of the registry names, behind HTTP.

launch.py starts it. http/ is uvicorn with bounds, app.py the routes; neither knows of MLflow or Ray. service.py answers
with the version that follower.py holds, by the threads of pipeline.py; replica.py has such services in processes of Ray
Serve, asked by the one in front. metrics.py is what Prometheus reads.
"""
