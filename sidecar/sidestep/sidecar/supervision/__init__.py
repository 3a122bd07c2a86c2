"""Which workers must run, the processes that they are, and where each stands."""
