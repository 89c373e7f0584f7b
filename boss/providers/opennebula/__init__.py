"""VMs of an OpenNebula, through its XML-RPC interface."""
