"""The memory and speed of a GPU, for planning; tests can simulate one."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

MATRIX_SIZE = 8192
NUM_PRODUCTS = 10


class Card(Protocol):
    """A device whose memory bounds a micro-batch."""

    def available_bytes(self) -> float:
        """Return the bytes that this process can still allocate."""

    def flops(self) -> float:
        """Return the operations per second in a large matrix product."""

    def peak_bytes(self, work: Callable[[], Any]) -> float | None:
        """Do ``work`` and return its peak above what was allocated; None if memory ran out."""


class CudaCard:
    """A GPU, of which this process may use what is free."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def available_bytes(self) -> float:
        """Return the bytes that this process can still allocate."""
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return float(free + cached)

    def flops(self) -> float:
        """Return the operations per second in a large bfloat16 matrix product."""
        size = MATRIX_SIZE
        matrix = torch.ones(size, size, device=self.device, dtype=torch.bfloat16)
        product = matrix @ matrix  # the first one chooses a kernel
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        for _ in range(NUM_PRODUCTS):
            torch.mm(matrix, matrix, out=product)
        torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        return 2 * size**3 * NUM_PRODUCTS / seconds

    def peak_bytes(self, work: Callable[[], Any]) -> float | None:
        """Do ``work`` and return its peak above what was allocated; None if memory ran out."""
        free_memory(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            work()
            torch.cuda.synchronize(self.device)
            return float(torch.cuda.max_memory_allocated(self.device) - before)
        except torch.OutOfMemoryError:
            return None
        finally:
            free_memory(self.device)


def card_of(device: torch.device) -> Card | None:
    """Return the card to plan for; None on a CPU, where memory bounds nothing."""
    return CudaCard(device) if device.type == "cuda" else None


def free_memory(device: torch.device) -> None:
    """Give cached blocks back, so that larger ones fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
