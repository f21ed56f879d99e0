"""Code that the front end and the workers share: wire types, settings, errors, queues and other stores."""
