"""`admin.py hosts`: boss and workers on a list of hosts, brought up and down with one command each."""
