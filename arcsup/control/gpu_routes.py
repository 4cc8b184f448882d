"""The routes about GPUs and single slices of them."""

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from arcsup.control.gpus import view_card, view_inventory, view_verdicts
from arcsup.control.openapi import Operation
from arcsup.control.requests import JsonAnswer, read_body, take_text
from arcsup.control.shapes import (
    AdoptJson,
    DoneJson,
    GpuJson,
    InventoryJson,
    SliceIdJson,
    SubmitJson,
    TypeVerdictJson,
)
from arcsup.control.supervisor import GpuSupervisor


class GpuControl:
    """The handlers."""

    def __init__(self, gpus: GpuSupervisor) -> None:
        self._gpus = gpus

    async def list_gpus(self, _request: Request) -> Response:
        """Answer the host's GPUs."""
        inventory = await self._gpus.inventory()
        return JsonAnswer([view_card(card) for card in inventory.cards])

    async def show_inventory(self, _request: Request) -> Response:
        """Answer all that planning needs to know of the host."""
        return JsonAnswer(view_inventory(await self._gpus.inventory()))

    async def explain(self, request: Request) -> Response:
        """Answer why each type is taken for a VM, or is not."""
        found = await self._gpus.explain(str(request.path_params["name"]))
        return JsonAnswer(view_verdicts(found))

    async def explain_file(self, request: Request) -> Response:
        """Answer the same for a VM as a file asks for it."""
        body = await read_body(request)
        file = Path(take_text(body, "file"))
        found = await self._gpus.explain_file(file, take_text(body, "source"))
        return JsonAnswer(view_verdicts(found))

    async def adopt(self, request: Request) -> Response:
        """Take a foreign slice into the journal."""
        body = await read_body(request)
        await self._gpus.adopt(take_text(body, "id"), take_text(body, "vm"))
        return JsonAnswer(DoneJson(done=True))

    async def release(self, request: Request) -> Response:
        """Let a slice go."""
        await self._gpus.release(take_text(await read_body(request), "id"))
        return JsonAnswer(DoneJson(done=True))

    async def list_quarantined(self, _request: Request) -> Response:
        """Answer what is not tried again."""
        return JsonAnswer(list(self._gpus.quarantined()))

    async def unquarantine(self, request: Request) -> Response:
        """Have it tried again."""
        lifted = self._gpus.unquarantine(take_text(await read_body(request), "id"))
        return JsonAnswer(list(lifted))

    def operations(self) -> Sequence[Operation]:
        """Return every route."""
        why = "Why each type is taken for a VM, or not"
        verdicts, gone = list[TypeVerdictJson], "/v1/gpus/quarantine"
        what = "The host for planning"
        return [
            Operation("GET", "/v1/gpus", "The host's GPUs", self.list_gpus, list[GpuJson]),
            Operation("GET", "/v1/inventory", what, self.show_inventory, InventoryJson),
            Operation("GET", "/v1/vms/{name}/types", why, self.explain, verdicts),
            Operation(
                "POST",
                "/v1/gpus/types",
                f"{why}; of a file",
                self.explain_file,
                verdicts,
                SubmitJson,
            ),
            Operation(
                "POST",
                "/v1/gpus/adopt",
                "Give a foreign slice to a VM",
                self.adopt,
                DoneJson,
                AdoptJson,
            ),
            Operation(
                "POST",
                "/v1/gpus/release",
                "Let a slice go, and leave it",
                self.release,
                DoneJson,
                SliceIdJson,
            ),
            Operation(
                "GET", gone, "What failed too often, or was lost", self.list_quarantined, list[str]
            ),
            Operation(
                "POST",
                "/v1/gpus/unquarantine",
                "Try it again",
                self.unquarantine,
                list[str],
                SliceIdJson,
            ),
        ]
