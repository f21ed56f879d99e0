"""The front end: validates, admits and queues requests, and streams their answers. Never imports torch."""
