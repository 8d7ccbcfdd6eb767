//! The page for people: what is served, and what it does in a browser.

use frugal::auth::Keys;
use frugal_config::auth::Key;
use reqwest::StatusCode;

use crate::clients::{Client, KEY};
use crate::harness::{Server, Setup};

async fn keyed() -> Server {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("test", KEY)]);
    setup.start().await
}

#[tokio::test]
async fn the_page_comes_out_of_the_binary_and_needs_no_key() {
    let server = keyed().await;
    let get = async |path: &str| {
        let response = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["cache-control"], "no-cache", "{path}");
        (response.headers()["content-type"].to_str().unwrap().to_owned(), response)
    };
    let (kind, page) = get("/").await;
    assert_eq!(kind, "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let page = page.text().await.unwrap();
    let links = page.split('"').filter(|part| part.starts_with('/'));
    let (parts, others): (Vec<&str>, Vec<&str>) = links.partition(|link| link.starts_with("/page/"));
    assert_eq!(parts, ["/page/icon.svg", "/page/page.css", "/page/chat.js", "/page/live.js"]);
    assert_eq!(others, ["/docs", "/metrics"]);
    let mut whole = page.clone();
    for (part, kind) in
        parts.into_iter().zip(["image/svg+xml", "text/css", "text/javascript", "text/javascript"])
    {
        let (served, response) = get(part).await;
        assert_eq!(served, kind);
        whole += &response.text().await.unwrap();
    }
    // The name of SVG's language is no address to load from.
    let whole = whole.replace("http://www.w3.org/2000/svg", "");
    for forbidden in ["://", "innerHTML", "insertAdjacentHTML", "eval(", "style=", "@import"] {
        assert!(!whole.contains(forbidden), "{forbidden}");
    }
}

#[tokio::test]
async fn the_page_in_a_browser() {
    let mut priced = Setup::priced();
    priced.operations.facts.currency = "USD".to_owned();
    let (server, keyed, paced) = (priced.start().await, keyed().await, Server::new().await);
    paced.control.pause();
    let urls = [("KEYED", keyed.url.as_str()), ("PACED", paced.url.as_str())];
    let client = Client::start("page", &server.url, &urls);
    let tested = client.finish(async |line| match line.strip_prefix("allow ") {
        Some(steps) => paced.control.allow(steps.parse().unwrap()),
        None if line == "resume" => paced.control.resume(),
        None => {}
    });
    if tested.await {
        // What was stopped in the browser was stopped in the engine.
        let cancelled = paced.handle.snapshot().counters.finished[3];
        assert_eq!(cancelled, 2);
    }
    paced.control.resume();
    for server in [server, keyed, paced] {
        server.settle().await;
    }
}
