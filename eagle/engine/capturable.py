"""Why the steps of a plan cannot be recorded, if they cannot: what is known before anyone tries."""

from eagle.drafters import CausalLMDrafter, Drafter
from eagle.engine.plan import Plan
from eagle.nn.fused_head import LENGTH_DEPENDENT_ROPE
from eagle.nn.target import CachedLM


def graph_blocker(target: CachedLM, drafter: Drafter | None, plan: Plan) -> str | None:
    """The reason in words, or None where a step does nothing that a CUDA graph cannot hold."""
    if plan.target.needs_prefix or plan.draft.needs_prefix:
        penalty = f"repetition_penalty={plan.target.settings.repetition_penalty}"
        return f"{'a logits_processor' if plan.target.processors else penalty} looks at tokens that are on the host"
    models = [target, drafter.lm] if isinstance(drafter, CausalLMDrafter) else [target]
    devices = {device for model in models for device in model.layer_devices} | {target.device}
    devices |= set() if drafter is None else {drafter.device}
    if len(devices) > 1:
        return f"the models are spread over {', '.join(sorted(map(str, devices)))}"
    return next((reason for reason in map(_waits, models) if reason), None)


def _waits(model: CachedLM) -> str | None:
    """Why the forward of this model waits for the device, if it does."""
    config = model.config
    if any(weight.is_meta for weight in model.model.parameters()):
        return "weights that are offloaded are fetched in every forward"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        return f"rotary scaling {rope!r} asks the host how long the text is"
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    how = getattr(config, "_experts_implementation", None) or "eager"
    if experts and how == "eager":
        return "its experts run one after the other, as the host decides; load with experts_implementation='grouped_mm'"
    return None
