"""The Ray Tune search over adapter and training settings; the objective itself is mmrl_core.search.objective."""
