"""What Prometheus can scrape: a process of its own, beside the sinks' and the derivers'."""
