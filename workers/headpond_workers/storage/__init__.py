"""Object storage: the port to it, S3 by boto3, and what every document in it has in common."""
