//! Who may start when, and who has to stop before whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::config::{env::Problem, service::Service, value::did_you_mean};

/// What a service may come after that is no service: the state has been restored from the store.
pub const STORE: &str = "store";

/// Which service comes after which. Made of services that were [checked](check).
#[derive(Debug, Clone, Default)]
pub struct Order(BTreeMap<String, BTreeSet<String>>);

impl Order {
    pub fn new(services: &[Service]) -> Self {
        Order(
            services
                .iter()
                .map(|service| (service.name.clone(), service.after.iter().cloned().collect()))
                .collect(),
        )
    }

    /// What has to be ready before that service may start.
    pub fn before<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// What has to be stopped before that service may stop.
    pub fn after<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let after = self.0.iter().filter(|(_, before)| before.contains(name));
        after.map(|(other, _)| other.as_str()).collect()
    }

    /// Everything that comes after something, directly or not.
    pub fn all_after(&self, name: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut next = self.after(name);
        while let Some(service) = next.pop() {
            if found.insert(service) {
                next.extend(self.after(service));
            }
        }
        found
    }

    /// The shortest way from a service back to itself.
    fn cycle_through<'a>(&'a self, name: &'a str) -> Option<Vec<&'a str>> {
        let mut ways = VecDeque::from([vec![name]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            for next in self.before(way[way.len() - 1]) {
                if next == name {
                    return Some(way);
                }
                if seen.insert(next) {
                    ways.push_back(way.iter().copied().chain([next]).collect());
                }
            }
        }
        None
    }
}

/// Finds every `after` that names nothing, and every cycle.
pub fn check(services: &[Service]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let names: BTreeSet<&str> = services.iter().map(|service| service.name.as_str()).collect();
    for service in services {
        for before in &service.after {
            if before != STORE && !names.contains(before.as_str()) {
                let known = names.iter().copied().chain([STORE]);
                let nearest = did_you_mean(before, known);
                problems.push(Problem::new(
                    format!("service \"{}\".after", service.name),
                    format!("there is no service `{before}`{nearest}"),
                ));
            }
        }
        if service.name == STORE {
            problems.push(Problem::new(
                format!("service \"{STORE}\".name"),
                format!("`{STORE}` stands for the restored state in `after`; give the service another name"),
            ));
        }
    }
    let order = Order::new(services);
    let mut reported = BTreeSet::new();
    for name in names {
        if let Some(cycle) = order.cycle_through(name)
            && cycle.iter().all(|member| !reported.contains(*member))
        {
            reported.extend(cycle.iter().copied());
            problems.push(Problem::new(
                format!("service \"{name}\".after"),
                format!(
                    "each of these waits for the next, for ever: {} -> {name}",
                    cycle.join(" -> ")
                ),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn services(list: &[(&str, &[&str])]) -> Vec<Service> {
        list.iter()
            .map(|(name, after)| Service {
                after: after.iter().map(|name| (*name).to_owned()).collect(),
                ..Service::named(name)
            })
            .collect()
    }

    fn problems(list: &[(&str, &[&str])]) -> Vec<String> {
        check(&services(list)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_cycle_is_printed_whole_and_once() {
        assert_eq!(
            problems(&[("a", &["b"]), ("b", &["c"]), ("c", &["a", "store"]), ("d", &["a"])]),
            ["service \"a\".after: each of these waits for the next, for ever: a -> b -> c -> a"]
        );
        assert_eq!(
            problems(&[("a", &["a"])]),
            ["service \"a\".after: each of these waits for the next, for ever: a -> a"]
        );
    }

    #[test]
    fn an_unknown_name_is_named_with_its_nearest() {
        assert_eq!(
            problems(&[("gateway", &["sandbx", "store"]), ("sandbox", &[])]),
            ["service \"gateway\".after: there is no service `sandbx`; the nearest known one is `sandbox`"]
        );
    }

    #[test]
    fn what_comes_after_is_found_to_the_end() {
        let order = Order::new(&services(&[
            ("gateway", &["store", "sandbox"]),
            ("sandbox", &[]),
            ("bot", &["gateway"]),
        ]));
        assert_eq!(Vec::from_iter(order.all_after(STORE)), ["bot", "gateway"]);
        assert_eq!(order.after("sandbox"), ["gateway"]);
        assert_eq!(Vec::from_iter(order.before("gateway")), ["sandbox", "store"]);
    }

    proptest! {
        /// What passes the check can all be started, one after another; what does not pass cannot.
        #[test]
        fn checked_services_can_all_start(edges in prop::collection::vec((0..6usize, 0..6usize), 0..12)) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut all: Vec<Service> = names.iter().map(|name| Service::named(name)).collect();
            for (from, to) in edges {
                all[from].after.push(names[to].to_owned());
            }
            let order = Order::new(&all);
            let mut started: BTreeSet<&str> = BTreeSet::new();
            loop {
                let before = started.len();
                for name in names {
                    if order.before(name).all(|before| started.contains(before)) {
                        started.insert(name);
                    }
                }
                if started.len() == before {
                    break;
                }
            }
            prop_assert_eq!(check(&all).is_empty(), started.len() == names.len());
        }
    }
}
