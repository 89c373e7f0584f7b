"""`python -m boss.shell.pip_broker PORT DIRECTORY ADDRESS`: the broker from pip (rumqttd in iotcore) without Mosquitto.

Listens on ADDRESS only. DIRECTORY only shows, in the process list, which home it works for.
"""

from __future__ import annotations

import logging
import sys

from iotcore.iotcore import IotCoreBroker

from ecloud.model.wire import MAX_MESSAGE_BYTES

IN_FLIGHT = 200


def main() -> None:
    """Serve until ended."""
    logging.basicConfig(level=logging.WARNING)
    # rumqttd logs a record for each packet.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    broker = IotCoreBroker(
        listen=sys.argv[3],
        port=int(sys.argv[1]),
        max_payload_size=MAX_MESSAGE_BYTES + 4096,
        max_inflight_count=IN_FLIGHT,
    )
    broker.run_forever()


if __name__ == "__main__":
    main()
