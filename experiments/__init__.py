"""Programs around the library: training, its configurations, studies."""
