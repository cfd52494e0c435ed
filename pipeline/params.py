"""Command params: the descriptions of the keys of params.yaml."""

import click


@click.command()
@click.argument("key", required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "json-schema"]),
    default="text",
    show_default=True,
    help="Format of the output; markdown and json-schema always describe all keys.",
)
def params(key: str | None, form: str) -> None:
    """Describe KEY of params.yaml, such as train.baseline.optimizer.lr, or a section; without KEY, all keys."""
    from leanresnet.scaffold.reference import explain, json_schema, table

    if form == "markdown":
        click.echo(table(), nl=False)
    elif form == "json-schema":
        click.echo(json_schema(), nl=False)
    else:
        click.echo(explain(key))
