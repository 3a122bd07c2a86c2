"""Posts the alarms of a run to a webhook: who is to hear of a collapse need not be looking."""
