"""From storage back into Redis: a server that lost its data, or one that went back in time. Rules: Q2, S3, S8."""
