"""Options that several of the consumer's commands have."""

from __future__ import annotations

from pathlib import Path

import click

client_config = click.option(
    "--client-config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="TLS and SASL settings of the Kafka client: name=value lines (security.protocol=SASL_SSL) or TOML.",
)
