"""One kind, one file: each compares what is wanted with what is, and moves one step."""

from collections.abc import Callable

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager

Setup = Callable[[Manager, Client, Clock, Settings], None]


def all_setups() -> list[Setup]:
    """What a hub runs. Imported only there, when it starts."""
    from metaos.controllers import (
        accounting,
        attestation,
        autoscaling,
        backup,
        budget,
        carbon,
        certificate,
        cluster,
        cronjob,
        deferral,
        definition,
        device,
        deviceset,
        deviceworkload,
        disruption,
        event,
        garbage,
        intent,
        loadbalancer,
        migration,
        namespace,
        networkpolicy,
        placement,
        price,
        quota,
        reoptimising,
        restored,
        revisions,
        service,
        serviceaccount,
        serviceexport,
        shifting,
        status,
        ttl,
        work,
    )

    modules = (
        cluster,
        certificate,
        placement,
        work,
        restored,
        migration,
        status,
        service,
        serviceexport,
        loadbalancer,
        networkpolicy,
        intent,
        carbon,
        price,
        reoptimising,
        definition,
        namespace,
        serviceaccount,
        garbage,
        quota,
        event,
        revisions,
        disruption,
        autoscaling,
        ttl,
        cronjob,
        deferral,
        shifting,
        accounting,
        budget,
        attestation,
        device,
        deviceset,
        backup,
        deviceworkload,
    )
    return [module.setup for module in modules]
