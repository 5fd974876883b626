"""Names: one thing may have many, each name one thing, and an unknown one is answered with what was meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.registry import Registry

OTHERS = {  # what other tools call what we have
    "ddim": ("DDIM", "ddim", "DDIMScheduler"),
    "plms": ("PLMS", "PNDMScheduler"),
    "ddpm": ("DDPM", "DDPMScheduler"),
    "euler": ("Euler", "k_euler", "EulerDiscreteScheduler"),
    "euler_a": ("Euler a", "k_euler_a", "k_euler_ancestral", "euler_ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": ("Heun", "heun", "HeunDiscreteScheduler"),
    "lms": ("LMS", "lms", "LMSDiscreteScheduler"),
    "dpm2": ("DPM2", "dpm_2", "KDPM2DiscreteScheduler"),
    "dpm2_a": ("DPM2 a", "dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    "dpm_solver_2m": ("dpm_solver",),
    "dpmpp_2m": ("DPM++ 2M", "k_dpmpp_2m", "dpmpp_2m", "dpm++2m", "DPMSolverMultistepScheduler"),
    "dpmpp_2s_a": ("DPM++ 2S a", "dpmpp_2s_ancestral"),
    "dpmpp_sde": ("DPM++ SDE", "dpmpp_sde", "DPMSolverSDEScheduler"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "dpmpp_2m_sde"),
    "dpmpp_3m_sde": ("DPM++ 3M SDE", "dpmpp_3m_sde"),
    "unipc": ("UniPC", "uni_pc", "UniPCMultistepScheduler"),
    "deis": ("DEIS", "deis", "DEISMultistepScheduler"),
    "lcm": ("LCM", "lcm", "LCMScheduler"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_names_of_the_three_vocabularies_are_known(name: str) -> None:
    for other in OTHERS[name]:
        assert SAMPLERS.name(other) == name
        assert SAMPLERS[other].name == name
        assert other in SAMPLERS


@given(name=st.sampled_from([n for e in SAMPLERS.values() for n in (e.name, *e.others)]), data=st.data())
def test_case_spaces_dashes_and_underscores_do_not_matter(name: str, data: st.DataObject) -> None:
    def other(match: re.Match[str]) -> str:
        return data.draw(st.sampled_from([" ", "-", "_", "  ", " - "]))

    said = re.sub(r"[\s_-]+", other, data.draw(st.sampled_from([name, name.upper(), name.lower()])))
    assert SAMPLERS.name(f" {said} ") == SAMPLERS.name(name)


@given(said=st.text(max_size=30))
def test_any_text_is_a_name_or_is_answered_in_one_line(said: str) -> None:
    for registry in (SAMPLERS, SPACINGS):
        if said in registry:
            assert registry.name(said) in set(registry)
        else:
            with pytest.raises(ValueError, match=rf"unknown {registry.kind} "):
                registry[said]


def test_each_sampler_is_listed_once() -> None:
    assert len(list(SAMPLERS)) == len(set(SAMPLERS)) == len(SAMPLERS)
    assert all(name == entry.name for name, entry in SAMPLERS.items())


def test_a_name_that_is_taken_is_refused_and_nothing_is_added() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("one", 1, also=("Uno",))
    for name, also in (("one", ()), ("UNO", ()), ("two", ("o-n-e", "One"))):
        with pytest.raises(ValueError, match="is registered twice"):
            registry.add(name, 2, also)
    assert dict(registry) == {"one": 1}
    assert "two" not in registry


def test_what_was_meant_is_found_among_all_names_and_told_by_its_own() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'EulerAncestralDiscretScheduler'; did you mean 'euler_a'"):
        SAMPLERS["EulerAncestralDiscretScheduler"]
