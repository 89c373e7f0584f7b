"""The monitor: web pages and metrics, in a separate process. Reads through `ecloud.queries`, sends requests to the boss
through `ecloud.client`."""
