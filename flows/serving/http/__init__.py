"""HTTP before the application: connections with bounds, who may ask, and whether they are still there."""
