"""A deployment on one machine: supervisord, embedded servers, scaling."""
