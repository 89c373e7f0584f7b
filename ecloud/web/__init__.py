"""The monitor: web pages and metrics, in a process of its own. Reads through `ecloud.queries`, asks through
`ecloud.client`."""
