"""Images of this machine's site."""

from __future__ import annotations

from pathlib import Path

import click

from metaos.cli.options import OUTPUT, default_data


@click.group()
def image() -> None:
    """Images of this machine's site.

    \b
    Example: nemo image import web.tar
    """


@image.command("import")
@click.argument("archive", type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The site's data directory, or that of a hub with a local site.")
@OUTPUT
def image_import(archive: Path, data: Path | None, output: str) -> None:
    """Import an OCI layout or a docker archive.

    \b
    Example: podman save -o web.tar localhost/web:1; nemo image import web.tar
    """
    from metaos.cli.operations import import_image, site_data
    from metaos.cli.output import emit

    place = site_data(data, default_data("agent"), default_data("hub"))
    names = import_image(archive, place)
    text = [f"imported {name} into {place}" for name in names]
    if not (place / "version").exists():
        text.append(f"no site has run there yet: it is found by an agent with --data {place}")
    emit({"images": names, "data": str(place)}, output, text="\n".join(text))


@image.command("list")
@click.option("--data", type=click.Path(path_type=Path), help="The site's data directory, or that of a hub with a local site.")
@OUTPUT
def image_list(data: Path | None, output: str) -> None:
    """Show the imported images.

    \b
    Example: nemo image list --data ./edge-1
    """
    from metaos.cli.operations import imported_images, site_data
    from metaos.cli.output import emit

    found = imported_images(site_data(data, default_data("agent"), default_data("hub")))
    rows = [f"{each['sizeBytes'] / 1_000_000:>8.1f} MB  {', '.join(each['names'])}" for each in found]
    emit({"images": found}, output, text="\n".join(rows) or "no image was imported; host images are in the site file")


@image.command("remove")
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="The site's data directory, or that of a hub with a local site.")
@OUTPUT
def image_remove(name: str, data: Path | None, output: str) -> None:
    """Remove an imported image; containers that run keep its files until they end.

    \b
    Example: nemo image remove localhost/web:1
    """
    from metaos.cli.operations import remove_image, site_data
    from metaos.cli.output import emit

    remove_image(name, site_data(data, default_data("agent"), default_data("hub")))
    emit({"removed": name}, output, text=f"removed {name}")
