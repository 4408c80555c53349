//! The procedures that come with the executable: of use as they are, and examples of the form.

use super::{Procedure, read::text_of};

/// The files, by name.
const FILES: [(&str, &str); 6] = [
    ("builtin/answer-from-sources.yaml", include_str!("answer-from-sources.yaml")),
    ("builtin/arithmetic.yaml", include_str!("arithmetic.yaml")),
    ("builtin/failing-test.yaml", include_str!("failing-test.yaml")),
    ("builtin/incident.yaml", include_str!("incident.yaml")),
    ("builtin/refund.yaml", include_str!("refund.yaml")),
    ("builtin/review.yaml", include_str!("review.yaml")),
];

/// All of them.
pub fn builtin() -> Vec<Procedure> {
    // that none is left out is tested
    FILES.iter().filter_map(|(name, text)| text_of(text, name).ok()).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::{super::Procedures, *};

    /// The score from which a procedure is found if nothing else is set.
    fn usual() -> f32 {
        folgore_config::SopSection::default().min_score as f32
    }

    #[test]
    fn every_file_is_a_procedure_that_says_what_to_expect() {
        for (name, text) in FILES {
            let procedures = text_of(text, name).unwrap();
            assert_eq!(procedures.len(), 1, "{name}");
            let p = &procedures[0];
            assert!(
                !p.category.is_empty() && !p.when.is_empty() && p.steps.iter().all(|s| !s.expect.is_empty()),
                "{name}"
            );
        }
        assert_eq!(builtin().len(), FILES.len());
    }

    #[test]
    fn each_is_found_by_questions_of_its_kind() {
        let memory = Procedures::new(builtin(), &[]).unwrap();
        let of_a_kind: [(&str, &[&str]); 6] = [
            (
                "Answer a question of fact from sources",
                &[
                    "Who wrote the novel Dune? Cite your sources.",
                    "Search the documents and tell me what the retention period for logs is.",
                    "What is the population of Peru? Please look it up and give a source.",
                    "According to the handbook, how many days of leave do I have?",
                ],
            ),
            (
                "Do arithmetic step by step",
                &[
                    "What is 48 + 7? Reply with the number only.",
                    "Calculate 17 * 23 - 4.",
                    "A shop sells 3 apples for 2 euros. How much do 12 apples cost?",
                    "How many eggs are left if I had 24 and used 9?",
                ],
            ),
            (
                "Fix a failing test",
                &[
                    "pytest reports that test_login fails with an assertion error, please fix it.",
                    "CI is red since this morning: cargo test fails in the parser crate.",
                    "This unit test is failing on main. Make it pass.",
                    "I have a flaky test that breaks every tenth run.",
                    "my tests failed",
                ],
            ),
            (
                "Triage an incident",
                &[
                    "The checkout service is down, customers get error 500.",
                    "Alert: p99 latency above 2 seconds in production for 10 minutes",
                    "We have an outage in eu-west, what do I do first?",
                    "Our site is not responding and the pager went off.",
                ],
            ),
            (
                "Handle a refund request",
                &[
                    "I want a refund for order 4711.",
                    "Hello! I bought a kettle last week. It leaks, and the box came late too. I want my money back. Thanks, Ann",
                    "The parcel never arrived, please refund me.",
                    "How can I return an item that I ordered?",
                    "I was charged two times for one order",
                ],
            ),
            (
                "Review a change",
                &[
                    "Please review this pull request.",
                    "Can you do a code review of my patch?",
                    "Look over this diff before I merge it: fn main() {}",
                    "Is this commit ready to merge?",
                ],
            ),
        ];
        for (name, questions) in of_a_kind {
            for question in questions {
                let found = memory.find(question, 1, usual()).unwrap();
                let first = found.first().map(|found| memory.active()[found.at].name.as_str());
                assert_eq!(first, Some(name), "{question}");
            }
        }
    }

    #[test]
    fn foreign_questions_find_none() {
        let memory = Procedures::new(builtin(), &[]).unwrap();
        for question in [
            "Write a poem about the sea.",
            "Translate \"good morning\" into French.",
            "What should I cook tonight with rice and beans?",
            "Tell me a joke about cats.",
            "Hello, how are you?",
            "Name three colours.",
            "Explain how photosynthesis works to a child.",
            "Write a function that reverses a string.",
            "My dog is afraid of thunder, what helps?",
            "Plan a weekend in Lisbon for two people who like museums and long walks along the river.",
            "Summarise the plot of Hamlet in two sentences.",
            "What is the capital of France?",
            "How many people live in Peru?",
            "How much is it?",
            "How do I write a good test?",
            "Which guitar strings are good for beginners?",
            "",
            "?!",
        ] {
            let found = memory.find(question, 1, usual()).unwrap();
            let shown = found.first().map(|found| (&memory.active()[found.at].name, found.score, &found.trigger));
            assert_eq!(shown, None, "{question}");
        }
    }
}
