"""From the journal in Redis to S3-compatible storage."""
