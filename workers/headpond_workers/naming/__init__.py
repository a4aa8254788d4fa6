"""Who a deployment is, what its models' names mean, and who runs under which instance name."""
