// A legacy JavaMail application: plain user name and password, as Genesys E-mail Server and its like use it.
//
// java JavaMail <imap|pop3|smtp> <port> <user> <password> [property=value …]
// Prints one line: `ok …` or `refused <exception>: <text>`; exit code 0, 3 when refused, 1 for anything else.

import java.util.Properties;
import javax.mail.AuthenticationFailedException;
import javax.mail.Folder;
import javax.mail.Message;
import javax.mail.MessagingException;
import javax.mail.Session;
import javax.mail.Store;
import javax.mail.Transport;
import javax.mail.internet.InternetAddress;
import javax.mail.internet.MimeMessage;

public class JavaMail {
    public static void main(String[] args) throws Exception {
        String protocol = args[0], user = args[2], password = args[3];
        int port = Integer.parseInt(args[1]);
        Properties properties = new Properties();
        properties.put("mail." + protocol + ".connectiontimeout", "20000");
        properties.put("mail." + protocol + ".timeout", "20000");
        String subject = "JavaMail says hello";
        for (int i = 4; i < args.length; i++) {
            String[] pair = args[i].split("=", 2);
            if (pair[0].equals("subject")) {
                subject = pair[1];
            } else {
                properties.put(pair[0], pair[1]);
            }
        }
        Session session = Session.getInstance(properties);
        if (System.getenv("JAVAMAIL_DEBUG") != null) {
            session.setDebug(true);
            session.setDebugOut(System.err);
        }
        try {
            if (protocol.startsWith("smtp")) {
                send(session, protocol, port, user, password, subject);
            } else {
                read(session, protocol, port, user, password);
            }
        } catch (AuthenticationFailedException refused) {
            System.out.println("refused " + refused.getClass().getSimpleName() + ": " + one(refused));
            System.exit(3);
        } catch (MessagingException broken) {
            System.out.println("broken " + broken.getClass().getSimpleName() + ": " + one(broken));
            System.exit(1);
        }
    }

    static void send(Session session, String protocol, int port, String user, String password, String subject)
            throws MessagingException {
        MimeMessage message = new MimeMessage(session);
        message.setFrom(new InternetAddress(user));
        message.setRecipient(Message.RecipientType.TO, new InternetAddress(user));
        message.setSubject(subject);
        message.setText("Sent by an application that will not be rewritten.\r\n.\r\n..dots\r\n");
        message.saveChanges();
        try (Transport transport = session.getTransport(protocol)) {
            transport.connect("127.0.0.1", port, user, password);
            transport.sendMessage(message, message.getAllRecipients());
        }
        System.out.println("ok sent");
    }

    static void read(Session session, String protocol, int port, String user, String password) throws Exception {
        try (Store store = session.getStore(protocol)) {
            store.connect("127.0.0.1", port, user, password);
            Folder inbox = store.getFolder("INBOX");
            inbox.open(Folder.READ_ONLY);
            int count = inbox.getMessageCount();
            String subject = count == 0 ? "" : inbox.getMessage(count).getSubject();
            String body = count == 0 ? "" : String.valueOf(inbox.getMessage(count).getContent());
            inbox.close(false);
            System.out.println("ok " + count + " messages, last: " + subject + ", " + body.length() + " characters");
        }
    }

    static String one(Exception e) {
        return String.valueOf(e.getMessage()).replaceAll("\\s+", " ").trim();
    }
}
