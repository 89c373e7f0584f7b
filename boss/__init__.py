"""The daemon that decides: a pure core, and the shell that gives it a database, a broker, a datastore and a cloud."""
