"""A quota of a site's owner lets in as many as it says, and tells why where it lets none."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import Quota
from metaos.scheduler import filters, quotas
from metaos.scheduler.framework import decide
from tests.scheduler.worlds import quotas as drawn
from tests.scheduler.worlds import site, workload, world


@given(drawn, st.integers(0, 300), st.integers(0, 4))
def test_what_is_let_in_stays_within_the_quota(quota: Quota, cpu: int, others: int) -> None:
    found, here = workload(cpu=cpu, memory=0), site("a", quotas={"shop": quota})
    fits = quotas.room(found, here)
    assert (quotas.reason(found, here) == "") == (fits > 0)
    if 0 < fits < quotas.MANY:
        left = quotas.less(quota, quotas.part(cpu, 0, fits))
        assert all(each is None or each >= 0 for each in (left.cpu, left.pods))
    fewer = quotas.room(found, replace(here, quotas={"shop": quotas.less(quota, quotas.part(50, 0, others))}))
    assert fewer <= fits, "what others take leaves no more"
    assert filters.room(found, here) <= fits


def test_replicas_are_divided_by_what_quotas_let_in() -> None:
    narrow, wide = site("a", quotas={"shop": Quota(cpu=200)}), site("b", quotas={"other": Quota(pods=0)})
    plan = decide(world(narrow, wide), workload(replicas=3, cpu=1000))
    assert dict(plan.clusters).keys() == {"b"}
    assert "the site's quota for namespace shop leaves 200m" in str(list(plan.rejected))
    plan = decide(world(site("a", quotas={"shop": Quota(pods=3)})), workload(replicas=10))
    assert dict(plan.clusters).get("a", 0) <= 3 and not plan.complete


def test_why_not_one_is_let_in() -> None:
    def why(quota: Quota, **more: int) -> str:
        return quotas.reason(workload(**more), site("a", quotas={"shop": quota}))

    assert why(Quota(pods=0)) == "the site's quota for namespace shop leaves no pod"
    assert "wants one of every pod" in why(Quota(cpu=100), cpu=0)
    assert why(Quota(cpu=100, default_cpu=50), cpu=0) == ""
    assert why(Quota(most_cpu=100), cpu=200) == "needs 200m of CPU, and a pod of namespace shop may ask for 100m at the site"
    assert "leaves 1Mi" in why(Quota(memory=1 << 20), memory=2 << 20)
