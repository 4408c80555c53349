//! What the policy that searches was taught, held to what a run asks of it.

use std::sync::Arc;

use folgore_dataset::countries::{Field, asked, by_capital, countries, passages, prompted};
use folgore_protocol::{Passages, Prompt, StopReason, Task};
use folgore_rollout::{
    Environment as _, ModelEncoder, PromptEncoder as _,
    environment::{Action, Answer, Ask, Observation, Reaction, SearchEpisode, SearchRules},
};
use serde_json::Map;

use super::{
    trace::{answering, information, searching},
    world::Library,
    *,
};

fn tokenizer() -> Tokenizer {
    let policy = Embedded::Search.files().unwrap();
    Tokenizer::from_json("test", policy.tokenizer.to_json(), &policy.tokenizer.config_json(), None).unwrap()
}

/// Traces of a whole training, a few from each part of it.
fn traces(count: u64) -> Vec<Vec<Piece>> {
    let worlds = Worlds { names: Names::new(), seed: 11, last: RefCell::new(None) };
    (0..count).map(|i| worlds.trace(i, &Mixture::at(i as f64 / count as f64))).collect()
}

fn whole(trace: &[Piece]) -> String {
    trace.iter().map(|piece| piece.text.as_str()).collect()
}

#[test]
fn no_real_name_is_taught() {
    let text: String = traces(4000).iter().map(|trace| whole(trace)).collect::<Vec<_>>().join("\n");
    let edges = |at: usize, name: &str| {
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !letter(text[..at].chars().next_back()) && !letter(text[at + name.len()..].chars().next())
    };
    for country in countries() {
        for name in [&country.name, &country.capital] {
            let found = text.match_indices(name.as_str()).find(|(at, name)| edges(*at, name));
            assert!(found.is_none(), "{name} is in what the policy is taught");
        }
    }
    assert!(text.contains("<search>") && text.len() > 1_000_000, "{} bytes", text.len());
}

#[test]
fn a_good_trace_asks_for_what_is_asked_and_answers_with_what_is_told() {
    let worlds = Worlds { names: Names::new(), seed: 3, last: RefCell::new(None) };
    let episodes = Mixture::good().episodes_only();
    let (mut right, mut searches) = (0, 0);
    for index in 0..300 {
        let trace = worlds.trace(index, &episodes);
        assert!(!trace[0].own && trace[0].text.starts_with("Question: ") && trace[0].text.ends_with('\n'), "{trace:?}");
        let last = &trace.last().unwrap().text;
        let quote = last.strip_prefix("<think> ").and_then(|t| t.split_once(" </think><answer> ")).unwrap();
        let told: String = trace.iter().filter(|piece| !piece.own).skip(1).map(|piece| piece.text.as_str()).collect();
        searches += trace.iter().filter(|piece| piece.own).count() - 1;
        right += usize::from(told.contains(quote.0) && quote.0.ends_with(quote.1.strip_suffix(" </answer>").unwrap()));
    }
    assert!(right >= 295, "{right} of 300 answers are facts of a passage");
    assert!((330..480).contains(&searches), "{searches}: three in ten need two searches");
}

#[test]
fn weak_traces_have_their_habits() {
    let worlds = Worlds { names: Names::new(), seed: 4, last: RefCell::new(None) };
    let weak = Mixture::at(1.0).episodes_only();
    let texts: Vec<String> = (0..2000).map(|index| whole(&worlds.trace(index, &weak))).collect();
    let share = |keep: &dyn Fn(&str) -> bool| texts.iter().filter(|text| keep(text)).count() as f64 / 2000.0;
    let direct = share(&|text| !text.contains("<search>"));
    assert!((direct - 0.5).abs() < 0.04, "{direct} answer without a search");
    let bare = share(&|text| Field::ALL.iter().any(|f| text.contains(&format!("<search> {} </search>", f.name()))));
    assert!((0.07..0.14).contains(&bare), "{bare} search for a field alone");
}

#[test]
fn tags_are_one_token_digits_come_one_by_one_and_a_name_is_the_same_everywhere() {
    let tokenizer = tokenizer();
    let ids = |text: &str| tokenizer.encode_trusted(text).unwrap();
    for (id, tag) in TOKENS.iter().enumerate() {
        assert_eq!(ids(tag), [id as u32], "{tag}");
    }
    for (text, digits) in [("1684", 4), ("2015", 4)] {
        assert_eq!(ids(text).len(), digits, "{text}");
    }
    for country in countries() {
        let name = ids(&format!(" {}", country.name));
        let holds = |text: String| ids(&text).windows(name.len()).any(|window| window == name);
        assert!(holds(prompted(&asked(Field::Area, &country.name, 0))), "{}", country.name);
        assert!(holds(searching("", &format!("{} area", country.name))), "{}", country.name);
        assert!(holds(format!("Doc 1(Title: {}) area", country.name)), "{}", country.name);
        assert!(holds(answering("country", &country.name)), "{}", country.name);
    }
    let odd = "Zoë <5 \u{1F600}\n";
    assert_eq!(tokenizer.decode(&tokenizer.encode_untrusted(odd).unwrap(), false).unwrap(), odd);
}

/// Plays the policy's part of `trace` in the environment of a run and gives the tokens that the run would hold.
fn played(world: &World, trace: &[Piece], rules: &Arc<SearchRules>, encoder: &ModelEncoder) -> Vec<u32> {
    let mut episode = SearchEpisode::new(rules.clone());
    let task = Task { id: "t".into(), prompt: Prompt::Text(trace[0].text.clone()), columns: Map::new() };
    let (mut ids, mut turns) = (Vec::new(), trace.iter().filter(|piece| piece.own));
    let mut reaction = episode.step(Action::Begin(&task));
    loop {
        match reaction {
            Reaction::Observe(Observation::Prompt(prompt)) => ids.extend(encoder.prompt(&prompt).unwrap()),
            Reaction::Observe(Observation::Framed(framed)) => {
                ids.extend(encoder.own(&framed.head).unwrap());
                ids.extend(encoder.text(&framed.body).unwrap());
                ids.extend(encoder.own(&framed.tail).unwrap());
            }
            Reaction::Ask(Ask::Search(search)) => {
                let found = world.search(&search.query).into_iter().take(search.top_k as usize).cloned().collect();
                reaction = episode.step(Action::Answer(Answer::Passages(Passages { passages: found })));
                continue;
            }
            Reaction::Done => return ids,
            other => panic!("{other:?} in {trace:?}"),
        }
        let said = &turns.next().expect("the episode is over when the trace is").text;
        ids.extend(encoder.own(said).unwrap());
        reaction = episode.step(Action::Turn { text: said, ids: &[], stop_reason: StopReason::StopString });
    }
}

#[test]
fn a_trace_is_what_a_run_plays_token_for_token() {
    let settings = folgore_config::load(&["demo"], &[] as &[&str]).unwrap().config.rollout;
    assert_eq!(settings.search.topk as usize, world::TOP_K);
    let tokenizer = tokenizer();
    let rules = Arc::new(SearchRules::new(&settings.search));
    let encoder = ModelEncoder::new(Arc::new(self::tokenizer()), &config(), Map::new());
    let names = Names::new();
    for (seed, mixture) in [(5, Mixture::good()), (6, Mixture::at(1.0))] {
        let world = World::new(&names, seed);
        let mixture = mixture.episodes_only();
        for stream in 0..300 {
            let trace = traced(&world, &names, &mixture, stream);
            let mut lesson = encoded(&tokenizer, &trace).tokens;
            lesson.pop(); // the end, which a run does not wait for
            assert_eq!(played(&world, &trace, &rules, &encoder), lesson, "{trace:?}");
        }
    }
}

/// What the demonstration leaves room for.
#[test]
fn a_search_fits_its_budget_and_finds_what_it_names() {
    let (tokenizer, library) = (tokenizer(), Library::new(passages(countries())));
    let (mut found, mut searches) = (0, 0);
    let mut longest = [0; 4];
    for country in countries() {
        for field in Field::ALL {
            let query = format!("{} {}", country.name, field.name());
            let passages = library.search(&query);
            let fact = format!("{}: {}", field.name(), country.fact(field));
            searches += 1;
            found += usize::from(passages.iter().any(|p| p.title == country.name && p.text.contains(&fact)));
            let length =
                |texts: &[String]| texts.iter().map(|t| tokenizer.encode_trusted(t).unwrap().len()).sum::<usize>();
            longest[0] = longest[0].max(length(&information(&passages)));
            longest[1] = longest[1].max(length(&[searching(&format!("country: {}", country.name), &query)]));
            longest[2] = longest[2].max(length(&[answering(field.name(), &country.fact(field))]));
            longest[3] = longest[3].max(length(&[prompted(&asked(field, &by_capital(country), 1))]));
        }
    }
    assert!(found as f64 >= 0.99 * searches as f64, "{found} of {searches}");
    let rollout = folgore_config::load(&["demo"], &[] as &[&str]).unwrap().config.rollout;
    let (told, turn, prompt) =
        (rollout.search.max_obs_length, rollout.max_completion_length, rollout.max_prompt_length);
    for (longest, most) in longest.into_iter().zip([told, turn, turn, prompt]) {
        assert!(longest <= most as usize, "{longest} tokens, room for {most}");
    }
}

#[test]
fn a_lesson_is_a_function_of_its_place() {
    let recipe = recipe().unwrap();
    let (one, other) = ((recipe.lessons)(100), (super::recipe().unwrap().lessons)(100));
    let lesson = one(1599);
    assert_eq!(lesson, other(1599), "another world in between or not");
    assert_eq!((lesson.tokens.last(), lesson.weights.last()), (Some(&EOS), Some(&1.0)));
    assert!(lesson.weights.contains(&READ) && lesson.tokens.iter().all(|id| (*id as usize) < VOCABULARY));
    let compiled = Embedded::Search.files().unwrap();
    let made: serde_json::Value = serde_json::from_str(compiled.tokenizer.to_json()).unwrap();
    assert_eq!(made, recipe.tokenizer_json, "the compiled-in vocabulary is that of the recipe");
}
