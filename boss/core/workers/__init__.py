"""Follows workers: sessions, leases, transfer slots, access to the datastore. Pure."""
