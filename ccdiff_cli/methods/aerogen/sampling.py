"""AeroGen's sampler: DDIM with noise (eta 0.2 as published), as the released program steps through it.

Notable here:
- the noise schedule is computed in double precision and rounded once; at the last steps 1 - a / a' cancels, and single precision shows.
- the released program takes more steps than asked for where their number does not divide 1000, and for some numbers none at all
  (it reaches past its schedule); here a sampler takes the steps asked for, unless ``released_count``.
- noise is added after the last step too.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from diffusers import SchedulerMixin as SchedulerMixin  # diffusers looks it up here when it loads a saved AeroGenDDIM

from ...errors import CCDiffError


class AeroGenDDIM(DDIMScheduler):
    """diffusers' DDIM over AeroGen's times and alphas; its arguments, and what a step computes, are those of ``DDIMScheduler``."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None, *, released_count: bool = False) -> None:
        """The times ``1 + k floor(1000 / steps)`` and their alphas.

        Raises:
            CCDiffError: no steps, or so many that they reach past the schedule.
        """
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise CCDiffError(f"{num_inference_steps} denoising steps", fix=f"ask for 1 to {total - 1}")
        stride = total // num_inference_steps
        times = 1 + stride * torch.arange(-(-total // stride) if released_count else num_inference_steps)
        if times[-1] >= total:
            raise CCDiffError(f"{num_inference_steps} denoising steps reach time {int(times[-1])} of {total - 1}", fix="ask for fewer")
        betas = torch.linspace(self.config.beta_start**0.5, self.config.beta_end**0.5, total, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).float().double()
        self.final_alpha_cumprod = self.alphas_cumprod[0]
        self.num_inference_steps = num_inference_steps
        self.timesteps = times.flip(0).to(device)

    def sigmas(self, eta: float) -> torch.Tensor:
        """``(S,)`` deviations of the noise added at each of ``timesteps``."""
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return eta * torch.stack([self._get_variance(t, t - stride) for t in self.timesteps.tolist()]).sqrt()


def ddim(prediction: str = "epsilon") -> AeroGenDDIM:
    """The sampler on Stable Diffusion's noise schedule."""
    return AeroGenDDIM(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type=prediction,
    )  # fmt: skip
