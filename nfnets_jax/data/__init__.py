"""Examples in, batches out: sources, transforms and the pipeline that combines them."""
