"""`admin.py hosts`: starts and stops boss and workers on a list of hosts, with one command each."""
