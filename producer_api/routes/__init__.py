"""One file per API; each makes a router from what it is handed."""
