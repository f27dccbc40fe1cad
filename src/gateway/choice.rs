//! Which configuration to start with (pure): the present one, unless it is known to fail; then the last that worked.

use serde_json::{Value, json};

use super::{
    patch::{Patched, Written, patch, patch_access},
    settings::GatewaySettings,
    version::Generation,
};

/// A configuration to start with.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub patched: Patched,
    /// It is the present one, with the environment's settings in it.
    pub is_present: bool,
}

/// The first of these that is not refused: the present configuration with all the environment asks for; the last that
/// worked, with all of it; that one with no more than it takes to be reached; a fresh one with all; a fresh one with the
/// least. `None` if all of them are refused.
///
/// Whatever fails becomes refused, so that each is tried once and there is an end to it.
pub fn choose(
    present: Option<&Value>,
    good: Option<&Value>,
    earlier: &Written,
    settings: &GatewaySettings,
    generation: Generation,
    is_refused: impl Fn(&Value) -> bool,
) -> Option<Choice> {
    let fresh = fresh(present.or(good));
    let all = |base: &Value| patch(base.clone(), earlier, settings, generation);
    let least = |base: &Value| patch_access(base.clone(), earlier, settings, generation);
    let candidates = [
        present.map(all),
        good.map(all),
        good.map(least),
        Some(all(&fresh)),
        Some(least(&fresh)),
    ];
    let choices = candidates.into_iter().enumerate().filter_map(|(at, patched)| {
        Some(Choice {
            patched: patched?,
            is_present: at == 0,
        })
    });
    choices.into_iter().find(|choice| !is_refused(&choice.patched.value))
}

/// A configuration with nothing in it but where the agent's files are.
fn fresh(known: Option<&Value>) -> Value {
    match known.map(|known| &known["agents"]["defaults"]["workspace"]) {
        Some(Value::String(workspace)) => json!({ "agents": { "defaults": { "workspace": workspace } } }),
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::env::Env;

    fn settings() -> GatewaySettings {
        let env: Env = [("TELEGRAM_BOT_TOKEN", "t"), ("OPENCLAW_GATEWAY_TOKEN", "g")]
            .into_iter()
            .collect();
        GatewaySettings::of_env(&env).unwrap()
    }

    proptest! {
        /// A gateway that fails with any set of configurations is tried with each of ours once.
        #[test]
        fn there_is_an_end_to_failing(has_present: bool, has_good: bool) {
            let (present, good) = (json!({ "a": 1 }), json!({ "b": 1 }));
            let (mut present, good) = (has_present.then_some(present), has_good.then_some(good));
            let mut refused: Vec<Value> = Vec::new();
            while let Some(choice) =
                choose(present.as_ref(), good.as_ref(), &Written::default(), &settings(), Generation::Current, |value| refused.contains(value))
            {
                prop_assert!(refused.len() < 5);
                refused.push(choice.patched.value.clone());
                present = Some(choice.patched.value);
            }
            prop_assert!(refused.len() >= 2);
        }
    }

    #[test]
    fn the_last_that_worked_comes_after_the_present_one() {
        let (present, good) = (json!({ "bad": 1 }), json!({ "good": 1 }));
        let choose = |refused: &dyn Fn(&Value) -> bool| {
            let choice = choose(
                Some(&present),
                Some(&good),
                &Written::default(),
                &settings(),
                Generation::Current,
                refused,
            )
            .unwrap();
            (choice.patched.value, choice.is_present)
        };
        let (first, is_present) = choose(&|_| false);
        assert!(is_present && first["bad"] == 1);
        let (second, is_present) = choose(&|value| value.get("bad").is_some());
        assert!(!is_present && second["good"] == 1);
        assert_eq!(second["channels"]["telegram"]["enabled"], true);
        // The environment's own settings may be what fails.
        let (third, _) = choose(&|value| value.get("bad").is_some() || value.get("channels").is_some());
        assert!(third["good"] == 1 && third.get("channels").is_none());
        assert_eq!(third["gateway"]["mode"], "local");
    }

    #[test]
    fn what_worked_is_tried_as_it_was() {
        let good = json!({ "models": { "providers": { "cf-ai-gw-openai": {} } }, "browser": { "defaultProfile": "moltinit" } });
        let is_refused = |value: &Value| value["models"] != good["models"];
        let earlier = Written::default();
        let choice = choose(
            None,
            Some(&good),
            &earlier,
            &settings(),
            Generation::Current,
            is_refused,
        )
        .unwrap();
        assert_eq!(choice.patched.value["browser"], good["browser"]);
        assert_eq!(choice.patched.value["gateway"]["mode"], "local");
    }

    #[test]
    fn a_fresh_one_keeps_the_agent_where_its_files_are() {
        let present = json!({ "bad": 1, "agents": { "defaults": { "workspace": "/root/clawd", "x": 1 } } });
        let is_refused = |value: &Value| value.get("bad").is_some();
        let earlier = Written::default();
        let choice = choose(
            Some(&present),
            None,
            &earlier,
            &settings(),
            Generation::Current,
            is_refused,
        )
        .unwrap();
        assert_eq!(
            choice.patched.value["agents"],
            json!({ "defaults": { "workspace": "/root/clawd" } })
        );
    }
}
