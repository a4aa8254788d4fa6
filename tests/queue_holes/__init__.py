"""The holes that the queue's rules close: each as a scenario, and as the cut that opens it again."""
